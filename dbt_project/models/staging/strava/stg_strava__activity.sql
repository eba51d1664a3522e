{{ pending_model('strava', 'activity') }}
