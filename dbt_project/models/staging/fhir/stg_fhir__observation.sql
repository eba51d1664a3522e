{{ pending_model('fhir', 'observation') }}
