{{ pending_model('google_health', 'distance') }}
