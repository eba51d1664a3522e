{{ pending_model('google_health', 'total_calories') }}
