{{ pending_model('strava', 'deletion') }}
