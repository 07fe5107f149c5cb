"""The data scientist's side. Never imports `hospital`."""
