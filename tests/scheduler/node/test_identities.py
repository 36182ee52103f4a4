"""Job uids are unique among all supervisors of a host and free again when their holder is gone."""

from pathlib import Path

import pytest

from scheduler.node.errors import NodeFailed
from scheduler.node.identities import UidPool


def test_two_supervisors_of_a_host_never_give_out_the_same_uid(tmp_path: Path) -> None:
    pools = [UidPool(tmp_path / "uids", 1000, 6) for _ in range(2)]
    leases = [pools[number % 2].lease() for number in range(6)]
    assert sorted(lease.uid for lease in leases) == [1000, 1001, 1002, 1003, 1004, 1005]
    with pytest.raises(NodeFailed, match="6 job uids"):
        pools[0].lease()
    leases[3].release()
    leases[3].release()
    assert pools[1].lease().uid == leases[3].uid
    pools[0].close()  # as when its supervisor dies
    assert pools[1].lease().uid in {leases[0].uid, leases[2].uid, leases[4].uid}


def test_a_uid_is_not_given_out_again_at_once(tmp_path: Path) -> None:
    pool = UidPool(tmp_path / "uids", 1000, 6)
    given = []
    for _ in range(6):
        lease = pool.lease()
        given.append(lease.uid)
        lease.release()
    assert len(set(given)) == 6
    assert [file.name for file in (tmp_path / "uids").iterdir()] == ["locks"]
