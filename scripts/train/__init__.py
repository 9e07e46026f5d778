"""Fine-tuning, distillation and evaluation of multiple-choice models."""
