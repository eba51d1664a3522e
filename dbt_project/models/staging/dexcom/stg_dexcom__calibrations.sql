{{ pending_model('dexcom', 'calibrations') }}
