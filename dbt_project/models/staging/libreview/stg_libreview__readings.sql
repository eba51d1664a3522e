{{ glucose_readings_of('libreview') }}
