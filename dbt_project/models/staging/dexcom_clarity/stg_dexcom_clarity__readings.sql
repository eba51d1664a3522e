{{ glucose_readings_of('dexcom_clarity') }}
