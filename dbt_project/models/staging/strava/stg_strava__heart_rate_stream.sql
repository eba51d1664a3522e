{{ pending_model('strava', 'heart_rate_stream') }}
