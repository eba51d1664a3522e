{{ pending_model('google_health', 'weight') }}
