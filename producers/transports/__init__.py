"""The two ways to a deployment: its Kafka, or its HTTP API. Both keep the same promises."""
