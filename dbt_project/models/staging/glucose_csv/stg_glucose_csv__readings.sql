{{ glucose_readings_of('glucose_csv') }}
