"""Who may do what: one line per operation of the API, and nobody asks anywhere else.

The API looks an operation up by its name before it looks at the request; an operation without a line here cannot be
served. That a tenant sees its own things only is not a duty: the operations take the tenant from the credential.
"""

from collections.abc import Mapping
from typing import Final

from compute_hub.identity.keys import Principal, require
from compute_hub.identity.roles import Role

_AUTHORITY: Final = (Role.AUTHORITY,)
_REVIEWERS: Final = (Role.FIRST_REVIEWER, Role.APPROVER)
_OPERATOR: Final = (Role.OPERATOR,)
_TENANT: Final = (Role.TENANT,)
_OFFICERS: Final = (Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.OPERATOR, Role.AUDITOR)
_USERS: Final = (Role.TENANT, Role.OPERATOR, Role.AUDITOR)
_BOOKS: Final = (Role.OPERATOR, Role.AUDITOR)
_CLAIMANTS: Final = (Role.OPERATOR, Role.TENANT)
_EVERYBODY: Final = tuple(Role)

DUTIES: Final[Mapping[str, tuple[Role, ...]]] = {
    # programmes: their rules are public
    "publish_programme": _AUTHORITY,
    "list_programmes": _EVERYBODY,
    "show_programme": _EVERYBODY,
    "list_programme_versions": _EVERYBODY,
    "show_programme_version": _EVERYBODY,
    "appropriate_budget": _AUTHORITY,
    "open_round": _AUTHORITY,
    "list_rounds": _EVERYBODY,
    "advance_reserve": _AUTHORITY,
    # applications
    "draft_application": _TENANT,
    "apply": _TENANT,
    "submit_application": _TENANT,
    "revise_application": _TENANT,
    "withdraw_application": _TENANT,
    "list_applications": (*_OFFICERS, Role.TENANT),
    "show_application": (*_OFFICERS, Role.TENANT),
    "request_revision": _REVIEWERS,
    "review_application": (Role.FIRST_REVIEWER,),
    "approve_application": (Role.APPROVER,),
    "reject_application": _REVIEWERS,
    "list_notices": _EVERYBODY,
    "raise_objection": _EVERYBODY,
    "resolve_objection": _AUTHORITY,
    "issue_voucher": _AUTHORITY,
    "release_tranche": _AUTHORITY,
    # vouchers
    "list_vouchers": (*_OFFICERS, Role.TENANT),
    "show_voucher": (*_OFFICERS, Role.TENANT),
    "recall_voucher": _AUTHORITY,
    "forecast_vouchers": (*_OFFICERS, Role.TENANT),
    "allot_part": _TENANT,
    "return_part": _TENANT,
    "restore_charge": _OPERATOR,
    "list_restorations": (*_OFFICERS, Role.TENANT),
    # enterprises and their keys
    "register_enterprise": _OPERATOR,
    "list_enterprises": (*_OFFICERS, Role.TENANT),
    "show_enterprise": (*_OFFICERS, Role.TENANT),
    "change_facts": _AUTHORITY,
    "list_facts": (*_OFFICERS, Role.TENANT),
    "record_controller": _AUTHORITY,
    "record_related": _AUTHORITY,
    "list_controllers": _OFFICERS,
    "list_control_history": _OFFICERS,
    "list_related": _OFFICERS,
    "make_key": _OPERATOR,
    "list_keys": _BOOKS,
    "revoke_key": _OPERATOR,
    # the tenant's own money
    "own_wallet": _TENANT,
    "own_wallet_history": _TENANT,
    "show_wallet": _BOOKS,
    "book_deposit": _OPERATOR,
    "grant_credit": _OPERATOR,
    "withdraw_credit": _OPERATOR,
    "repay_credit": _OPERATOR,
    "bind_affiliate": _OPERATOR,
    "unbind_affiliate": _OPERATOR,
    "raise_budget": _TENANT,
    "lower_budget": _TENANT,
    "list_budgets": _TENANT,
    # jobs
    "store_upload": _TENANT,
    "submit_job": _TENANT,
    "quote_job": _TENANT,
    "estimate_job": _TENANT,
    "list_jobs": _USERS,
    "show_job": _USERS,
    "list_job_attempts": _USERS,
    "cancel_job": (Role.TENANT, Role.OPERATOR),
    "hold_job": (Role.TENANT, Role.OPERATOR),
    "release_job": (Role.TENANT, Role.OPERATOR),
    "change_job_dependencies": _TENANT,
    "submit_job_array": _TENANT,
    "show_job_array": _USERS,
    "cancel_job_array": (Role.TENANT, Role.OPERATOR),
    "read_job_log": _USERS,
    "list_job_artifacts": _USERS,
    "read_job_artifact": _USERS,
    "put_secret": _TENANT,
    "list_secrets": _TENANT,
    "delete_secret": _TENANT,
    "save_job_template": (Role.TENANT, Role.OPERATOR),
    "list_job_templates": _USERS,
    "show_job_template": _USERS,
    "delete_job_template": (Role.TENANT, Role.OPERATOR),
    "explain_job": _USERS,
    "list_job_usage": (Role.TENANT, *_OFFICERS),
    "show_held_time": (Role.TENANT, *_OFFICERS),
    "list_gap_cases": _BOOKS,
    "list_meter_alarms": _BOOKS,
    "list_job_charges": (Role.TENANT, *_OFFICERS),
    # statements and invoices
    "show_statement": _USERS,
    "draft_invoice": _USERS,
    "close_month": _OPERATOR,
    "list_invoices": _USERS,
    "show_invoice": _USERS,
    "credit_invoice": _OPERATOR,
    "list_line_charges": (Role.TENANT, *_OFFICERS),
    "list_charge_records": (Role.TENANT, *_OFFICERS),
    "invoice_document": _USERS,
    "set_alert_rule": _OPERATOR,
    "end_alert_rule": _OPERATOR,
    "list_alert_rules": _USERS,
    "list_alerts": _USERS,
    # claims: who reviews does not approve, who disburses does not reconcile
    "make_claim": _CLAIMANTS,
    "resubmit_claim": _CLAIMANTS,
    "list_claims": (*_OFFICERS, Role.TENANT),
    "show_claim": (*_OFFICERS, Role.TENANT),
    "list_claim_lines": (*_OFFICERS, Role.TENANT),
    "check_claim": (Role.FIRST_REVIEWER,),
    "sample_claim": (Role.FIRST_REVIEWER, Role.AUDITOR),
    "review_claim": (Role.FIRST_REVIEWER,),
    "dispute_claim_line": _REVIEWERS,
    "refuse_claim_line": _REVIEWERS,
    "approve_claim": (Role.APPROVER,),
    "reject_claim": _REVIEWERS,
    "disburse_claim": _AUTHORITY,
    "reconcile_claim": _BOOKS,
    "claw_back_claim_line": _AUTHORITY,
    # the centre and its books
    "show_cluster": _EVERYBODY,
    "list_environments": _EVERYBODY,
    "show_demand": _BOOKS,
    "cordon_node": _OPERATOR,
    "drain_node": _OPERATOR,
    "resume_node": _OPERATOR,
    "label_node": _OPERATOR,
    "cordon_device": _OPERATOR,
    "resume_device": _OPERATOR,
    "list_node_events": _BOOKS,
    "reserve_nodes": _OPERATOR,
    "cancel_reservation": _OPERATOR,
    "list_reservations": _USERS,
    "set_rate": _OPERATOR,
    "publish_rates": _OPERATOR,
    "correct_charge": _OPERATOR,
    "list_rates": _EVERYBODY,
    "audit_ledger": _BOOKS,
    "list_ledger_accounts": _BOOKS,
    "ledger_account_history": _BOOKS,
}


def check_duty(principal: Principal, operation: str) -> None:
    """Refuse a principal whose role does not have this duty. Raises WrongRole."""
    require(principal, *DUTIES[operation])
