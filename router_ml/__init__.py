"""router_ml: the cheapest model that answers a prompt acceptably, and honest books on what that saved."""
