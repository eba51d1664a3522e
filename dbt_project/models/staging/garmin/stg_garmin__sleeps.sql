{{ pending_model('garmin', 'sleeps') }}
