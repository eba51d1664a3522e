"""What leaves the house because its owner said where to: alerts to a webhook, questions to a language model."""
