"""placeholder until the evaluation modules land."""
