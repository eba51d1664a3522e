{{ pending_model('google_health', 'daily_sleep_temperature_derivations') }}
