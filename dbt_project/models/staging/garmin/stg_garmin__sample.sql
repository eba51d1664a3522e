{{ pending_model('garmin', 'sample') }}
