CREATE TABLE orders (
    id TEXT PRIMARY KEY NOT NULL,
    guest TEXT NOT NULL,
    dish TEXT NOT NULL,
    -- placed, then cooking, refused or cancelled
    state TEXT NOT NULL,
    minutes INTEGER,
    placed_at BIGINT NOT NULL
);
CREATE INDEX orders_placed_at ON orders (placed_at);
