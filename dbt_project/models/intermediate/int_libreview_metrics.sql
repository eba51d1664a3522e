{{ metrics_of_meals('libreview') }}
