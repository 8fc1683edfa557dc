"""The weekly report of usage and cost: its figures from the ledger, and how a mail shows them."""
