{{ glucose_readings_of('nightscout') }}
