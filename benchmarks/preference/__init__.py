"""The suite ``preference``: DPO compared with TRL."""
