{{ pending_model('fhir', 'observation_value') }}
