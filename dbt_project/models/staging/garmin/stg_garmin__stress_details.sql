{{ pending_model('garmin', 'stress_details') }}
