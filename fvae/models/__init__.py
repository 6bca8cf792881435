"""The networks: functions of weights and inputs, which know nothing of training."""
