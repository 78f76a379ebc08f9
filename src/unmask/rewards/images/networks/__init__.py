"""The networks behind image rewards, on transformers only; imported when one is used, for they bring torch."""
