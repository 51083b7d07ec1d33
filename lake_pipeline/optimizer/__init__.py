"""The optimizer of a sealed run: thousands of trials of exits, evaluated exactly, selected on train only."""
