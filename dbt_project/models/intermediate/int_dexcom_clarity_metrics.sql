{{ metrics_of_meals('dexcom_clarity') }}
