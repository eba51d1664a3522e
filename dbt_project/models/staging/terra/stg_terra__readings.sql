{{ glucose_readings_of('terra') }}
