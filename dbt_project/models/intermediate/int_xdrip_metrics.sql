{{ metrics_of_meals('xdrip') }}
