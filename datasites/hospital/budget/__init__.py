"""What a population's patients have lost and may still lose: priced, charged, gated. Nothing here is refunded."""
