{{ pending_model('google_health', 'floors') }}
