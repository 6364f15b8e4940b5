"""What a person types: commands, the demo, the doctor. Modules are imported when their command runs."""
