{{ metrics_of_meals('nightscout') }}
