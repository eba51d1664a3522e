{{ pending_model('garmin', 'respiration') }}
