"""Who runs where and when: a pure, deterministic function of what is known and the time."""
