{{ glucose_readings_of('glooko') }}
