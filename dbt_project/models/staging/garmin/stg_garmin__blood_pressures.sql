{{ pending_model('garmin', 'blood_pressures') }}
