{{ config(meta={'rights': 'owner'}) }}

-- Not materialized, so that a question about one person reads that person's receipts.
with received as not materialized (
    select
        user_id,
        source,
        data_start_date,
        data_end_date
    from {{ ref('int_receipts_attributed') }}
    where data_start_date is not null and {{ visible_to_reader('user_id') }}
),

connected as (
    -- Who is connected should send every day until the last one that is over; who no longer is, what was sent.
    select
        connections.user_id,
        connections.provider as source,
        coalesce(
            min(received.data_start_date), (connections.connected_at at time zone 'UTC')::date
        ) as first_date,
        case
            when connections.status in ('active', 'error')
                then greatest(max(received.data_end_date), {{ last_day_over() }})
            else max(received.data_end_date)
        end as last_date
    from {{ ref('int_connections_checked') }} as connections
    left join received
        on received.user_id = connections.user_id
        and received.source = connections.provider
    where {{ visible_to_reader('connections.user_id') }}
    group by connections.user_id, connections.provider, connections.connected_at, connections.status
),

spans as (
    select
        user_id,
        source,
        first_date,
        last_date
    from connected
    union
    -- Files: the days of each, since nobody is to send anything for the time between two of them.
    select
        received.user_id,
        received.source,
        received.data_start_date,
        received.data_end_date
    from received
    where not exists (
        select
        from {{ ref('int_connections_checked') }} as connections
        where connections.user_id = received.user_id and connections.provider = received.source
    )
)

select
    user_id,
    source,
    -- One date of long ago in a file does not make a century of days.
    greatest(first_date, last_date - 3660) as first_date,
    last_date
from spans
where first_date <= last_date
