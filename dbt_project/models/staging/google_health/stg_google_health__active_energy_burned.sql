{{ pending_model('google_health', 'active_energy_burned') }}
