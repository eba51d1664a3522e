{{ pending_model('google_health', 'exercise') }}
