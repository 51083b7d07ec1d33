"""Real daemons, run processes and databases: what the other tests take for granted of Dagster."""
