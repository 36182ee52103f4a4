"""Programme, application, review, issue, redemption, settlement claim: the life of public compute money."""
