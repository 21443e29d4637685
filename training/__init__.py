"""What runs offline: from labelled prompts and outcomes to the artefact that router_ml serves."""
