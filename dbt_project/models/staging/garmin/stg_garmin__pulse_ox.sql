{{ pending_model('garmin', 'pulse_ox') }}
