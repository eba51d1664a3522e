{{ glucose_readings_of('xdrip') }}
