{{ pending_model('garmin', 'sleep_level') }}
