"""Fine-tuning: tasks, adaptation, few-shot draws."""
