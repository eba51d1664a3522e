{{ pending_model('strava', 'athlete') }}
