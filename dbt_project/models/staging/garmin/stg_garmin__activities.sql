{{ pending_model('garmin', 'activities') }}
